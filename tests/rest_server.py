"""A real REST catalog: Iceberg's own server, which its clients are tested with, over the catalog's PostgreSQL.

`org.apache.iceberg:iceberg-open-api:1.10.0:test-fixtures` and what it needs for S3 come from Maven Central, by the Ivy
that pyspark brings along; the rest of its class path are Spark's own jars. All it needs is Java.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyspark

from tests.processes import await_true, free_port

ROOT = Path(__file__).parents[1]
SPARK_JARS = Path(pyspark.__file__).parent / "jars"
# Organisation and version -> modules; a module's classifiers stand behind its name.
MODULES = {
    ("org.apache.iceberg", "1.10.0"): (
        "iceberg-open-api:test-fixtures iceberg-core iceberg-core:tests iceberg-api iceberg-common "
        "iceberg-bundled-guava iceberg-aws"
    ),
    ("org.eclipse.jetty", "11.0.26"): "jetty-http jetty-io jetty-security jetty-server jetty-servlet jetty-util",
    ("org.eclipse.jetty.toolchain", "5.0.2"): "jetty-jakarta-servlet-api",
    ("org.apache.httpcomponents.core5", "5.3.4"): "httpcore5",
    ("org.postgresql", "42.7.8"): "postgresql",
    ("com.github.ben-manes.caffeine", "2.9.3"): "caffeine",
    ("dev.failsafe", "3.3.2"): "failsafe",
    ("org.reactivestreams", "1.0.4"): "reactive-streams",
    ("software.amazon.awssdk", "2.33.0"): (
        "apache-client auth aws-core aws-query-protocol aws-xml-protocol checksums checksums-spi endpoints-spi "
        "http-auth http-auth-aws http-auth-spi http-client-spi identity-spi json-utils kms metrics-spi profiles "
        "protocol-core regions retries retries-spi s3 sdk-core sts third-party-jackson-core utils"
    ),
}
_ARTIFACT = '<artifact name="{}" type="jar" ext="jar"{}/>'
_DEPENDENCY = '<dependency org="{}" name="{}" rev="{}" transitive="false">{}</dependency>'
_MODULE = (
    '<ivy-module version="2.0" xmlns:m="http://ant.apache.org/ivy/maven">'
    '<info organisation="coldchain" module="rest-server"/><dependencies>{}</dependencies></ivy-module>'
)


def _dependencies() -> Iterator[str]:
    for (organisation, version), words in MODULES.items():
        names = [word.partition(":") for word in words.split()]
        for name in dict.fromkeys(name for name, _, _ in names):
            classifiers = [classifier for each, _, classifier in names if each == name]
            artifacts = (_ARTIFACT.format(name, f' m:classifier="{each}"' if each else "") for each in classifiers)
            yield _DEPENDENCY.format(organisation, name, version, "".join(artifacts))


def jars() -> Path:
    """Resolve the server's jars once, into a folder of the clone."""
    module = _MODULE.format("".join(_dependencies()))
    home = ROOT / "build" / "jars" / f"rest-{hashlib.sha256(module.encode()).hexdigest()[:12]}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.parent / "rest.lock", "w", encoding="utf-8") as lock:  # one fetches, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "whole").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            (home / "ivy.xml").write_text(module)
            (ivy,) = SPARK_JARS.glob("ivy-*.jar")
            asked = ["java", "-jar", str(ivy), "-cache", str(home / "cache"), "-ivy", str(home / "ivy.xml")]
            asked += ["-retrieve", f"{home}/jars/[artifact]-[revision](-[classifier]).[ext]"]
            subprocess.run(asked, check=True, capture_output=True, timeout=600)
            shutil.rmtree(home / "cache")
            (home / "whole").touch()
    return home / "jars"


@contextmanager
def serving(folder: Path, catalog_uri: str, warehouse: str, storage: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve a REST catalog on loopback; yields its address.

    Args:
        folder: where it writes its log.
        catalog_uri: SQLAlchemy's of the PostgreSQL database that it keeps its tables in, under a name of its own.
        warehouse: where it makes tables: a path or `s3://bucket/path`.
        storage: pyiceberg's properties of the object store; it hands the keys out with every table.
    """
    database, port = urlsplit(catalog_uri), free_port()
    settings = {
        "CATALOG_URI": f"jdbc:postgresql://{database.hostname}:{database.port}{database.path}",
        "CATALOG_JDBC_USER": database.username or "",
        "CATALOG_JDBC_PASSWORD": unquote(database.password or ""),
        "CATALOG_CATALOG_NAME": f"rest-{port}",
        "CATALOG_REST_PORT": str(port),
        "CATALOG_WAREHOUSE": warehouse,
        "CATALOG_INCLUDE__CREDENTIALS": "true",
    }
    if storage:
        settings |= {
            "CATALOG_IO__IMPL": "org.apache.iceberg.aws.s3.S3FileIO",
            "CATALOG_S3_PATH__STYLE__ACCESS": "true",
            "CATALOG_S3_ENDPOINT": storage["s3.endpoint"],
            "CATALOG_CLIENT_REGION": storage["s3.region"],
            "CATALOG_S3_ACCESS__KEY__ID": storage["s3.access-key-id"],
            "CATALOG_S3_SECRET__ACCESS__KEY": storage["s3.secret-access-key"],
        }
    command = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]
    command += [f"{jars()}/*{os.pathsep}{SPARK_JARS}/*", "org.apache.iceberg.rest.RESTCatalogServer"]
    with (folder / f"rest-{port}.log").open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, (folder / f"rest-{port}.log").read_text()[-2000:]
        try:
            return urllib.request.urlopen(f"{address}/v1/config", timeout=5).status == 200
        except urllib.error.URLError:
            return False

    try:
        await_true(answers, "the REST catalog to answer")
        yield address
    finally:
        server.kill()
        server.wait()
