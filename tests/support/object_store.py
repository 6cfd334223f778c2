"""An S3 server for tests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class S3:
    """An S3 server on loopback. Its URIs and the environment hold all that another process needs to reach it."""

    address: str
    requests: list[str] = field(default_factory=list)  # lines of the server's log
    buckets: int = 0

    def written(self, folder: str, since: int) -> list[str]:
        """Return what was written below `folder`, by its relative path, in the requests from number `since` on."""
        lines = [line for line in self.requests[since:] if "PUT" in line and folder in line]
        return [line.partition(folder)[2].partition(" ")[0] for line in lines]

    def uri(self, path: str = "") -> str:
        """Create a bucket and return the URI of a path in it."""
        from pyarrow.fs import S3FileSystem

        self.buckets += 1
        bucket = f"bucket-{self.buckets}"
        S3FileSystem(
            endpoint_override=self.address, scheme="http", region="us-east-1", allow_bucket_creation=True
        ).create_dir(bucket)
        return f"s3://{bucket}/{path}?endpoint_override={self.address}&scheme=http&region=us-east-1"
