"""What `import isa_tf` gives."""

import pkgutil
import warnings

import pytest

import isa_tf


def test_every_module_is_reachable_from_the_package():
    modules = {module.name for module in pkgutil.iter_modules(isa_tf.__path__)}
    # The first are the package's own, or for tests alone; two of the others are functions.
    apart = {"backend", "compat", "hints", "names", "testing", "version"}
    assert {*isa_tf.__all__} == modules - apart | {
        "__version__",
        "export",
        "load_predictor",
    }
    assert all(hasattr(isa_tf, name) for name in isa_tf.__all__)
    assert isa_tf.export is isa_tf.formats.export
    assert isa_tf.load_predictor is isa_tf.formats.load_predictor


@pytest.mark.parametrize("module", ["isa_tf", "isa_tf.layers.conv", "tools.export", __name__])
def test_a_warning_of_ours_is_an_error_here(module):
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module)
