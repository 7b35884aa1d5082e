import time, pathlib, json
from .openwebui import *
from .processes import free_port
from . import openwebui
def test_it(proxy, launch, tmp_path, scripted_model, mcp_server):
    out = {"proxy": proxy.process.url, "proxylog": str(proxy.process.log), "model": scripted_model.process.url, "mcp": mcp_server.process.url}
    for name, caps in (("plain", {"builtin_tools": False}), ("builtin", {"builtin_tools": True, "usage": True})):
        port = free_port()
        store = tmp_path/name; store.mkdir()
        p = launch("owui-"+name, openwebui.serve, "/health", port=port, environment=openwebui.environment(port, store, proxy.process.url+"/v1", caps))
        out[name] = p.url; out[name+"log"]=str(p.log); out[name+"boot"] = p.boot_seconds
    pathlib.Path("/tmp/explore.json").write_text(json.dumps(out, indent=1))
    while pathlib.Path("/tmp/explore.json").exists(): time.sleep(1)
