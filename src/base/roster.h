// Things found by folder: the build lists the files of src/methods (and of the other folders that hold one thing a
// file) and generates the roster from their names, so that a new file is in every table without being listed anywhere.
//
// A file src/methods/NAME.cpp defines `const MethodInfo& winnow::roster::method_NAME()`; likewise model_NAME in
// src/models, codec_NAME in src/cache/codecs, command_NAME in tools/winnow/commands. Dashes of a name are underscores.
#pragma once
