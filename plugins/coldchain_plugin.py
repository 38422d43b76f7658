"""The Airflow plugin: the status page in the navigation, and the app behind it. All of it lives in `coldchain.ui`."""

from urllib.parse import urlsplit

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from coldchain import preload
from coldchain.ui.late import LateApp, make_app


class ColdchainPlugin(AirflowPlugin):
    """Serves `/coldchain` and shows it in an iframe of the UI."""

    name = "coldchain"
    listeners = [preload]  # noqa: RUF012
    fastapi_apps = [{"name": "coldchain", "url_prefix": "/coldchain", "app": LateApp(make_app)}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        {
            "name": "Coldchain",
            "href": urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/") + "/coldchain/",
            "destination": "nav",
            "url_route": "coldchain",
        }
    ]
