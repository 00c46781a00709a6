"""A copy of a model that computes the same, faster."""


def fuse(model, winograd=True):
    """A copy of a model that computes the same in inference, faster, on CPUs.

    Normalisations go into their convolutions, the output convolution of an attention into its
    value's; 3x3 convolutions of 64 channels and more are computed by Winograd's minimal filtering.
    XLA compiles its transforms, and the attention inside groups, anew for each size of image.
    Under a policy of half precision, products are float32 where the processor only emulates it
    (`ops.product_dtype`), and those of minimal filtering, from 128 channels on then, always are.
    The copy is for inference alone: it keeps to the weights that the model has now, and it is the
    model itself that is to be saved, exported and trained on: the copy's kernels are constants, up
    to four times the size of the weights.

    Args:
        model: `keras.Model` or layer of this package's layers; others stay as they are.
        winograd: bool. Defaults to `True`.

    Returns:
        `keras.Model` (or layer), not compiled.

    Raises:
        ValueError: for a model that is not built.

    Example:

    >>> model = Segmenter("tiny", num_classes=5)
    >>> image = np.zeros((1, 65, 97, 3), "uint8")
    >>> np.allclose(fuse(model)(image), model(image), atol=1e-4)
    True
    """
    if not model.built:
        raise ValueError(f"{model.name} is not built: call it on an image first")
    copy = type(model).from_config(model.get_config())
    if not copy.built:
        copy.build_from_config(model.get_build_config())
    copy.set_weights(model.get_weights())
    for layer in copy._flatten_layers():
        if hasattr(layer, "fuse_for_inference"):
            layer.fuse_for_inference(winograd)
    copy.trainable = False
    copy.is_fused = True
    return copy
