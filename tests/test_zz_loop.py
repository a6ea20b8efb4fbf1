import sys; sys.path.insert(0,"/work/main/tests")
import pytest
from test_cli_rendering import *


@pytest.mark.parametrize("n", range(14))
def test_rep(run, tmp_path, n):
    for k in ("a","b"):
        assert run("relight","shot.mp4","--light","sun.exr","other/sun.hdr","--format","png","mp4","-o",tmp_path/k)==0
    A,B=contents(tmp_path/"a"),contents(tmp_path/"b")
    d=[x for x in A if A[x]!=B[x]]
    print(sorted(d))
    for x in [x for x in d if x.endswith("mp4")]:
        a,b=dr.Clip.read(tmp_path/"a"/x).frames,dr.Clip.read(tmp_path/"b"/x).frames
        print(x,(a-b).abs().max().item(),(a!=b).float().mean().item())
    assert not d
