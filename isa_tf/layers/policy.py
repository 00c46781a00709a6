"""What dtype policies layers and models of this package cannot follow."""

import keras

from isa_tf.hints import DType


def checked_policy(dtype: DType, what: str) -> keras.dtype_policies.DTypePolicy:
    """The policy that is meant by a dtype; a `DTypePolicyMap` as it is.

    Args:
        dtype: name or policy, or `None` for the global policy.
        what: whose it is, for the error.

    Raises:
        ValueError: for a policy that quantises, alone or in a map, since Keras quantises no
            convolutions; and for a map without `default_policy`, of which Keras would save none of
            the policies.

    Example:

    >>> checked_policy("mixed_bfloat16", "head").compute_dtype
    'bfloat16'
    """
    policy = keras.dtype_policies.get(dtype)
    of_paths = {}
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        if policy.get_config()["default_policy"] is None:
            raise ValueError(
                f"{what}: a DTypePolicyMap needs its default_policy, such as "
                'DTypePolicyMap("mixed_bfloat16"): without one, Keras saves none of its policies'
            )
        of_paths = {path: policy[path] for path in policy}
    for path, each in {"": policy, **of_paths}.items():
        if each.quantization_mode is not None:
            where = f" of {path!r}" if path else ""
            raise ValueError(
                f"{what}: the policy {each.name!r}{where} quantises, and Keras quantises no "
                'convolutions; isa_tf.export(model, "model.tflite", "litert_int8", ...) writes a '
                "model that computes in int8"
            )
    return policy
