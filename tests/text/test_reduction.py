"text.reduction: principal components against scikit-learn, on disk, and on input without directions."

import pytest
import torch

from gti_nb.core import GTIError
from gti_nb.text import LinearMap, reduce


def data(n=300, d=12, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ torch.diag(torch.arange(d, 0, -1.0)) + 5


@pytest.mark.parametrize("whiten", [False, True])
def test_reduce_is_principal_components(whiten):
    from sklearn.decomposition import PCA

    x = data()
    got, mapping = reduce(x, 5, whiten)
    wanted = PCA(5, whiten=whiten, svd_solver="full").fit(x.double().numpy())
    assert torch.allclose(got, torch.tensor(wanted.transform(x.double().numpy())).float(), atol=1e-3)
    new = data(7, seed=1)
    assert torch.allclose(mapping(new), torch.tensor(wanted.transform(new.double().numpy())).float(), atol=1e-3)
    assert got.dtype == torch.float32 and torch.allclose(mapping(x), got)


def test_reduce_does_not_depend_on_the_order():
    x = data()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(reduce(x[order], 12)[0], reduce(x, 12)[0][order], atol=1e-4)


def test_a_map_on_disk(tmp_path):
    _, mapping = reduce(data(), 5, whiten=True)
    mapping.save(tmp_path / "map.safetensors")
    assert torch.equal(LinearMap.load(tmp_path / "map.safetensors")(data()), mapping(data()))
    (tmp_path / "map.safetensors").write_bytes((tmp_path / "map.safetensors").read_bytes()[:-3])
    with pytest.raises(GTIError, match="cannot be read as a linear map"):
        LinearMap.load(tmp_path / "map.safetensors")
    mapping.save(tmp_path / "flip.safetensors")
    whole = (tmp_path / "flip.safetensors").read_bytes()
    (tmp_path / "flip.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(GTIError, match="its values are not those that were written"):
        LinearMap.load(tmp_path / "flip.safetensors")
    LinearMap(mapping.mean[:-1], mapping.matrix).save(tmp_path / "odd.safetensors")
    with pytest.raises(GTIError, match="got shapes"):
        LinearMap.load(tmp_path / "odd.safetensors")
    LinearMap(mapping.mean * float("nan"), mapping.matrix).save(tmp_path / "nan.safetensors")
    with pytest.raises(GTIError, match="NaN or infinity"):
        LinearMap.load(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    "vectors, dim, whiten, says",
    [
        (data(), 0, False, "got 0, allowed: a whole number from 1 to 12"),
        (data(), 13, False, "got 13"),
        (data(4), 4, False, "for 4 vectors of 12.*allowed: a whole number from 1 to 3"),
        (data(), 2.5, False, "got 2.5"),
        (data()[0], 1, False, "shape \\(12,\\)"),
        (data().index_fill(0, torch.tensor(7), float("nan")), 2, False, "infinity in row 7"),
        (data()[:, [0, 0, 1]], 3, True, "rank of the centred vectors is 2"),
        (torch.ones(9, 3), 1, False, "all 9 are equal"),
    ],
)
def test_wrong_reductions(vectors, dim, whiten, says):
    with pytest.raises(GTIError, match=says):
        reduce(vectors, dim, whiten)
