// The parts of fmt that are not templates, compiled once instead of in every file. fmt's headers
// come with the torch wheel, which does not install its library.
#include <fmt/format-inl.h>

FMT_BEGIN_NAMESPACE
template FMT_API auto detail::dragonbox::to_decimal(float) -> dragonbox::decimal_fp<float>;
template FMT_API auto detail::dragonbox::to_decimal(double) -> dragonbox::decimal_fp<double>;
template FMT_API auto detail::thousands_sep_impl(locale_ref) -> thousands_sep_result<char>;
template FMT_API auto detail::decimal_point_impl(locale_ref) -> char;
template FMT_API void detail::buffer<char>::append(const char*, const char*);
FMT_END_NAMESPACE
