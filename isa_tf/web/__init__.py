"""The page in which a browser runs models: a static folder, and a server for it."""

from isa_tf.web.folder import POLICY, is_built, write
from isa_tf.web.server import make_server

__all__ = ["POLICY", "is_built", "make_server", "write"]
