# winnow_roster(OUT FOLDER PREFIX TYPE FUNCTION HEADER): writes OUT, which defines
#   std::span<const TYPE* const> winnow::FUNCTION()
# over winnow::roster::PREFIX_NAME() of every FOLDER/NAME.cpp that is no test and has no NAME.h: a file with a header of
# its own is machinery, not an entry. HEADER declares TYPE and FUNCTION.
function(winnow_roster out folder prefix type function header)
  file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  set(declarations "")
  set(entries "")
  foreach(source ${sources})
    get_filename_component(name ${source} NAME_WE)
    if(EXISTS ${folder}/${name}.h)
      continue()
    endif()
    string(REPLACE "-" "_" name ${name})
    string(APPEND declarations "const ${type}& ${prefix}_${name}();\n")
    string(APPEND entries "      &roster::${prefix}_${name}(),\n")
  endforeach()
  file(GENERATE OUTPUT ${out} CONTENT
"// Generated from the files of ${folder}.
#include <span>
#include <vector>

#include \"${header}\"

namespace winnow {
namespace roster {
${declarations}}  // namespace roster

std::span<const ${type}* const> ${function}() {
  static const std::vector<const ${type}*> kAll = {
${entries}  };
  return kAll;
}

}  // namespace winnow
")
endfunction()
