"""The page that shows the OpenAPI document: Swagger UI, from here and not from elsewhere, under headers of its own."""

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

from serve_app.http.page import guarded, inline

FILES = ("fastapi_offline", "static")
"""The package that has Swagger UI's files, and where in it."""


def add_docs(api: FastAPI) -> None:
    """Adds the page at /docs, and its files below it.

    Args:
        api: What is documented.
    """
    # Relative addresses: a proxy may have the application below a prefix.
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
        style_from="'self' 'unsafe-inline'",  # Swagger UI makes styles while it runs
        image_from="'self'",
    )

    @api.get("/docs", include_in_schema=False)
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(page.content, headers=page.headers)

    api.mount("/docs", StaticFiles(packages=[FILES]))
