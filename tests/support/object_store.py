"""An S3 server for tests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class S3:
    """An S3 server on loopback. What another process needs to reach it is in the URIs and the environment."""

    address: str
    requests: list[str] = field(default_factory=list)  # the server's log
    buckets: int = 0

    def uri(self, path: str = "") -> str:
        """The URI of a path in a new bucket."""
        from pyarrow.fs import S3FileSystem

        self.buckets += 1
        bucket = f"bucket-{self.buckets}"
        S3FileSystem(
            endpoint_override=self.address, scheme="http", region="us-east-1", allow_bucket_creation=True
        ).create_dir(bucket)
        return f"s3://{bucket}/{path}?endpoint_override={self.address}&scheme=http&region=us-east-1"
