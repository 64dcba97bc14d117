"""Read overrides of an app's run config as `flwr run --run-config` takes them, by Flower's own functions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from bridge.common.job_options import ConfigValue
from bridge.flare.console.call import ConsoleError


def overrides(given: Sequence[str], file: str | None = None) -> dict[str, ConfigValue]:
    """Return the overrides by key. Nested keys are joined with dots.

    Flower (1.34 to 1.42 `common/config.py`) reads all strings together. Of `a.b=1` and then `a.c=2` it would
    lose the first, so each is also read alone, and a later one overrides an earlier one.

    Args:
        given: strings such as `key=value`, each with several of them.
        file: the content of a TOML file in their place.

    Raises:
        ConsoleError: Flower refuses them, in its words.
    """
    # Imported here, since it may fail with an old flwr, and not every job has overrides.
    import click
    from flwr.common.config import parse_config_args
    from flwr.common.serde import user_config_to_proto

    found: dict[str, ConfigValue] = {}
    try:
        if file is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "overrides.toml"
                path.write_text(file)
                found = parse_config_args([str(path)])
        else:
            # The empty text keeps Flower from taking a single string for the path of a file.
            parse_config_args([*given, ""])
            for text in given:
                found |= parse_config_args([text, ""])
        user_config_to_proto(found)
    except click.ClickException as refused:
        raise ConsoleError(f"--run-config: {refused.message}", 2) from None
    except (ValueError, RecursionError) as wrong:
        raise ConsoleError(f"--run-config: {wrong}", 2) from None
    return found
