"""How property tests run: no deadline (machines are shared), and the same examples every time where CI is set."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "coldchain",
    max_examples=100,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("coldchain")
