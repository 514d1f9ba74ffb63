"""The page /docs: Swagger UI for the OpenAPI document, from local files and with its own security headers."""

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from serve_app.http.page import guarded, inline

FILES = ("fastapi_offline", "static")
"""The package that has Swagger UI's files, and their folder in it."""


def add_docs(api: FastAPI) -> None:
    """Adds the page /docs to an application, and the page's files below /docs.

    Args:
        api: The application that the page documents.
    """
    # Relative addresses, because a proxy may serve the application below a prefix.
    answer = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=api.title,
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )
    content = bytes(answer.body).decode()
    page = guarded(
        content,
        script_from=f"'self' {inline(content, 'script')}",
        style_from="'self' 'unsafe-inline'",  # Swagger UI creates styles while it runs
        image_from="'self'",
    )

    @api.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(page.content, headers=page.headers)

    api.mount("/docs", StaticFiles(packages=[FILES]))
