"""FastAPI on uvicorn: a plain function in FastAPI's thread pool, as most write it. It has no batching.

No lock: a tf.function may be called by several threads. https://fastapi.tiangolo.com/async/, /tutorial/request-files/
"""

from typing import Any

import uvicorn
from fastapi import FastAPI, File
from model import PORT, Model, answer, decode

app = FastAPI()
model = Model()


@app.post("/predict")
def predict(file: bytes = File()) -> dict[str, Any]:
    """Classifies an image file."""
    return answer(model.predict(decode(file)[None])[0])


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT)
