import sys; sys.path.insert(0,"/work/main/tests")
from test_cli_rendering import *
import pytest, torch
@pytest.mark.parametrize("n", range(12))
def test_rep(run, tmp_path, n):
    for k in ("a","b"):
        assert run("relight","shot.mp4","--light","sun.exr","other/sun.hdr","--format","mp4","-o",tmp_path/k)==0
    A,B=contents(tmp_path/"a"),contents(tmp_path/"b")
    d=[x for x in A if A[x]!=B[x]]
    for x in d:
        a,b=dr.Clip.read(tmp_path/"a"/x).frames,dr.Clip.read(tmp_path/"b"/x).frames
        print(x,(a-b).abs().max().item(),(a!=b).float().mean().item())
    assert not d
