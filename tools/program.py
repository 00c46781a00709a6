"""How a tool is started: what the machine refuses it is told in a line, with exit status 1."""

import functools

from absl import app


def run(main):
    """`app.run(main)` of what `guarded` makes of it."""
    app.run(guarded(main))


def guarded(main):
    """A program's `main` whose `OSError`s (a full disk, a file in the way) are lines, not traces.

    Ctrl-C ends it with 130, as shells have it.

    Args:
        main: function of the arguments that gives the exit status.
    """

    @functools.wraps(main)
    def act(argv):
        try:
            return main(argv)
        except OSError as error:
            print(f"FAULT {error}")
            return 1
        except KeyboardInterrupt:
            return 130

    return act
