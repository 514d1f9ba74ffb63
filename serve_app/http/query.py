"""A check of the parameters in a request's address, behind the question mark: unknown ones are refused."""

from fastapi import Request

from serve_app.errors import RequestError


# A coroutine, though it awaits nothing, because FastAPI would run a plain function in another thread.
async def check_query(request: Request) -> None:
    """Refuses a request whose address has a parameter that its route does not take; a FastAPI dependency.

    Raises:
        RequestError: 422: a parameter is unknown. The message names it, and the parameters that the route takes.
    """
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    unknown = next((name for name in request.query_params if name not in known), None)
    if unknown is not None:
        advice = f"Known parameters: {', '.join(known)}." if known else "This address takes no parameters."
        raise RequestError(422, f"The address has the unknown parameter {unknown[:100]!r}. {advice}")
