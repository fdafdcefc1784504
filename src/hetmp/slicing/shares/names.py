"""The names of torch's operations, by what they make of a share."""

from hetmp.ops.functions.elementwise import Elementwise


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _elementwise() -> frozenset[str]:
    """Return what works element by element, without the underscore of work in place."""
    functions = {getattr(function, "__name__", "") for function in Elementwise.functions}
    ruled = {name.removesuffix("_") for name in (*functions, *Elementwise.methods)}
    return frozenset(ruled | _WITHOUT_A_RULE) - EMPTY - PASSED


_WITHOUT_A_RULE = _words("""
absolute alias arccos arcsin arctan arccosh arcsinh arctanh acosh asinh atanh bitwise_and
bitwise_not bitwise_or bitwise_xor conj conj_physical copysign cuda data deg2rad digamma erfinv
float_power heaviside hypot i0 igamma imag isclose isneginf isposinf isreal ldexp lgamma
log_sigmoid logaddexp nextafter pin_memory positive rad2deg real resolve_conj resolve_neg signbit
sinc softshrink xlogy
""")

PASSED = _words("""
allclose as_subclass backward broadcast_tensors can_cast constant_ copy_ data_ptr detach_ dim
element_size equal fill_ full_like get_device has_names ndimension nelement new_full new_ones
new_tensor new_zeros numel ones_ ones_like promote_types record_stream requires_grad_
register_post_accumulate_grad_hook result_type retain_grad set_ share_memory_ size storage
storage_offset storage_type stride swap_tensors untyped_storage zero_ zeros_
_has_compatible_shallow_copy_type
__bool__ __delete__ __dlpack__ __dlpack_device__
__hash__ __index__ __len__ __repr__ __set__ __setstate__ __str__
""")
"""What asks of a tensor as it lies here, fills it, or leaves it as it is."""

VALUES = _words("""
item numpy tolist __array__ __complex__ __float__ __format__ __int__
""")
"""What reads numbers, which are parts where they are sums over a share."""

DRAWN = _words("""
alpha_dropout bernoulli bernoulli_ binomial cauchy_ dropout dropout1d dropout2d dropout3d
exponential_ feature_alpha_dropout feature_dropout geometric_ gumbel_softmax kaiming_normal_
kaiming_uniform_ log_normal_ multinomial native_dropout normal normal_ orthogonal_ poisson
rand_like randint_like randn_like random_ rrelu sparse_ trunc_normal_ uniform_ xavier_normal_
xavier_uniform_
""")
"""What draws random numbers in the shape of a tensor."""

EMPTY = _words("empty_like new_empty zeros_like")
"""New tensors in the shape of a share; a user may draw numbers for them."""

LINEAR = _words("""
add alias bfloat16 cat clone concat concatenate contiguous cpu cuda data detach div divide double
expand flatten float getitem half isfinite isinf isnan mean mul multiply nansum neg negative
positive reshape rsub squeeze stack sub subtract sum to true_divide truediv type type_as
unsqueeze view
""")
"""What gives a summand of the whole's where an operand is a summand."""

PRODUCTS = _words("mul multiply div divide true_divide truediv")

TURNED = _words("T mT H mH adjoint")

RESHAPED = _words("view reshape flatten unflatten view_as reshape_as ravel")

ELEMENTWISE = _elementwise()

_ARITHMETIC = _words("add sub mul truediv floordiv mod pow and or xor lshift rshift")
_COMPARED = _words("eq ne lt le gt ge neg pos abs invert getitem setitem")


def operator_name(name: str) -> str:
    """Return what an operator's method is known by: ``__rsub__`` is ``sub``."""
    bare = name.strip("_")
    if bare in _ARITHMETIC or bare in _COMPARED:
        return bare
    turned = {"rdiv": "div", "rtruediv": "div", "idiv": "div", "div": "div"}
    if bare in turned:
        return turned[bare]
    return bare[1:] if bare[:1] in "ir" and bare[1:] in _ARITHMETIC else name
