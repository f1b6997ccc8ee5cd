"""Thumbnails of photos: over HTTP (the body is a photo, the answer a JPEG), and for files dropped into a folder."""

import base64
import io
import posixpath

from PIL import Image, ImageOps

SIDE = 256  # pixels of the longer side


def thumbnail(photo):
    with Image.open(io.BytesIO(photo)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
        small.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=80)
        return out.getvalue()


def handler(event, context):
    if "Records" in event:
        return {"files": [of_record(record) for record in event["Records"]]}
    body = event.get("body") or ""
    photo = base64.b64decode(body) if event.get("isBase64Encoded") else body.encode()
    try:
        small = thumbnail(photo)
    except OSError as error:
        return {"statusCode": 400, "body": f"send a photo as the request's body: {error}\n"}
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "image/jpeg"},
        "body": base64.b64encode(small).decode(),
        "isBase64Encoded": True,
    }


def of_record(record):
    name, _ = posixpath.splitext(posixpath.basename(record["s3"]["object"]["key"]))
    small = thumbnail(base64.b64decode(record["faas"]["content_base64"]))
    return {"name": f"{name}.thumb.jpg", "content_base64": base64.b64encode(small).decode()}
