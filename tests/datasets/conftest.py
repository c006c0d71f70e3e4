import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image


@pytest.fixture
def make_tree(mvtec_tree, eyecandies_tree):
    """Return a function (data set, root, side, num) that writes one category, and its root.

    That of "folder" is that of "mvtec3d" under another name, with depth images and a camera.
    """

    def make(dataset, root, side=(30, 40), num=(2, 1, 1, 2)):
        if dataset == "eyecandies":
            return eyecandies_tree(root, side=side[0] * 4 // 5, num=num)
        mvtec_tree(root, side=side, num=num)
        if dataset == "mvtec3d":
            return root
        home = (root / "bagel").rename(root / "my part")
        for path in list(home.rglob("*.tiff")):
            depth = np.round(tifffile.imread(path)[..., 2] / 1e-5).astype(np.uint16)
            (path.parents[1] / "depth").mkdir(exist_ok=True)
            Image.fromarray(depth).save(path.parents[1] / "depth" / f"{path.stem}.png")
            path.unlink()
        for path in list(home.rglob("xyz")):
            path.rmdir()
        focal = 0.5 / (0.15 / max(side))
        camera = {"fx": focal, "fy": focal, "cx": side[1] / 2, "cy": side[0] / 2}
        (home / "camera.yaml").write_text(yaml.safe_dump(camera | {"depth_scale": 1e-5}))
        return root

    return make
