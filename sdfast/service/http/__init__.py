"""The service over HTTP: the dialects that clients speak, on FastAPI.

Every module of routes has `router(service, settings) -> APIRouter`; `app` includes them.
"""
