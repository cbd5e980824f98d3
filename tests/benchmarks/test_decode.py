"""The benchmark of decoding measures what it says."""

from benchmarks import decode


def test_the_images_are_like_those_of_cameras():
    data = decode.jpeg(0)
    assert 330_000 < len(data) < 530_000


def test_ours_is_as_good_as_the_benchmark_asks():
    data = decode.jpeg(0)
    assert decode.ours(data).shape == decode.by_pillow(data).shape == (448, 576, 3)
    assert decode.psnr(data) >= decode.LEAST_PSNR
