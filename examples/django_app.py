"""Django in one file. In a project the client is opened in ``AppConfig.ready``, and views import it."""

import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from heliograph.blocking import Heliograph


@dataclass
class Limits:
    max_items: int


client = Heliograph(
    os.environ["HELIOGRAPH_URL"],
    token=Path(os.environ["HELIOGRAPH_TOKEN_FILE"]).read_text().strip(),
    namespace="shop",
    environment="production",
    app="django",
)
limits = client.bind("checkout/limits", Limits)
client.start()


def show_limits(_: HttpRequest) -> JsonResponse:
    return JsonResponse({"max_items": limits.value.max_items, "pid": os.getpid()})


settings.configure(
    ROOT_URLCONF=__name__, SECRET_KEY=secrets.token_urlsafe(32), ALLOWED_HOSTS=["127.0.0.1", "localhost", "testserver"]
)
urlpatterns = [path("limits", show_limits)]
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
