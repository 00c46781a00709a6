"""What `import isa_tf` gives."""

import pkgutil

import isa_tf


def test_every_module_is_reachable_from_the_package():
    modules = {module.name for module in pkgutil.iter_modules(isa_tf.__path__)}
    # The first are the package's own, or for tests alone; two of the others are functions.
    apart = {"compat", "hints", "names", "testing", "version"}
    assert {*isa_tf.__all__} == modules - apart | {
        "__version__",
        "export",
        "load_predictor",
    }
    assert all(hasattr(isa_tf, name) for name in isa_tf.__all__)
    assert isa_tf.export is isa_tf.formats.export
    assert isa_tf.load_predictor is isa_tf.formats.load_predictor
