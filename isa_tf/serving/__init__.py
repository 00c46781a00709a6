"""A server of predictors: bytes of a picture in, ids, overlay or JSON out.

`limits`, `service` and `app` know nothing of what they run on; `cluster` runs them on Ray Serve.
"""

from isa_tf.serving.app import make_app
from isa_tf.serving.cluster import application
from isa_tf.serving.limits import Limits, Refused, read_picture
from isa_tf.serving.service import Answer, Options, Service

__all__ = [
    "Answer",
    "Limits",
    "Options",
    "Refused",
    "Service",
    "application",
    "make_app",
    "read_picture",
]
