"""What a command tries at every door of the gateway, one line each: NAME: REACHED or NAME: refused and why."""
import base64, ctypes, hashlib, json, os, socket, subprocess, sys, urllib.request, urllib.error

program, state, port, token, approval, pid, code, seed = sys.argv[1:9]
is_operator = len(sys.argv) > 9
pid = int(pid)
control = state + "/run/control.sock"


def attempt(name, act):
    try:
        reached, why = act()
    except Exception as error:
        reached, why = False, f"{type(error).__name__} {error}"
    print(f"{name}: {'REACHED' if reached else 'refused'} {str(why).splitlines()[:1]}", flush=True)


def cli(*words):
    def act():
        run = subprocess.run([program, "--state", state, *words], capture_output=True, text=True, timeout=30)
        return run.returncode == 0, run.stderr
    return act


def read(path):
    return lambda: (len(open(path, "rb").read(1)) == 1, "")


def folder():
    # Another folder stands where the state is, for a command of the gateway's own user.
    names = os.listdir(state)
    return not {"state.db", "audit", "keys", "run", "workspaces"}.isdisjoint(names), names


class WebSocket:
    def __init__(self, door):
        self.door = door
        self.door.settimeout(20)
        self.send_all(f"GET / HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.take(1)
        assert b" 101 " in head.split(b"\r\n")[0], head

    def send_all(self, text):
        self.door.sendall(text.encode())

    def take(self, count):
        data = b""
        while len(data) < count:
            piece = self.door.recv(count - len(data))
            assert piece, "closed"
            data += piece
        return data

    def frame(self):
        first, length = self.take(2)
        if length == 126:
            length = int.from_bytes(self.take(2), "big")
        elif length == 127:
            length = int.from_bytes(self.take(8), "big")
        data = self.take(length)
        assert first & 15 == 1, (first, data)
        return json.loads(data)

    def call(self, method, params):
        text = json.dumps({"type": "req", "id": method, "method": method, "params": params}).encode()
        length = bytes([128 | 126]) + len(text).to_bytes(2, "big")
        self.door.sendall(b"\x81" + length + b"\0\0\0\0" + text)
        while True:
            frame = self.frame()
            if frame.get("id") == method:
                return frame


class Key:
    """Ed25519 (RFC 8032 5.1), as slow as it is short."""
    p, order = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
    d = -121665 * pow(121666, -1, p) % p
    base = (15112221349535400772501151409588531511454012693041857206046113283949847762202,
            46316835694926478169428394003475163141307993866256225615783033603165251855960)

    def add(self, a, b):
        (x, y), (u, v), p = a, b, self.p
        t = self.d * x * u * y * v
        return (x * v + u * y) * pow(1 + t, -1, p) % p, (y * v + x * u) * pow(1 - t, -1, p) % p

    def times(self, n):
        sum, point = (0, 1), self.base
        while n:
            sum = self.add(sum, point) if n & 1 else sum
            point, n = self.add(point, point), n >> 1
        return self.bytes(sum)

    def bytes(self, point):
        return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")

    def __init__(self, seed):
        digest = hashlib.sha512(seed).digest()
        self.scalar = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
        self.prefix, self.public = digest[32:], self.times(self.scalar)

    def sign(self, text):
        number = lambda *parts: int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % self.order
        r = number(self.prefix, text)
        point = self.times(r)
        s = (r + number(point, self.public, text) * self.scalar) % self.order
        return point + s.to_bytes(32, "little")


def url64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(challenge, client, scopes):
    """As a device that a person has approved: a run has come by its key."""
    key = Key(bytes.fromhex(seed))
    nonce, at = challenge["payload"]["nonce"], challenge["payload"]["ts"]
    name = hashlib.sha256(key.public).hexdigest()
    text = f"v3|{name}|{client['id']}|{client['mode']}|operator|{','.join(scopes)}|{at}|{token}|{nonce}|linux|test"
    return {"id": name, "publicKey": url64(key.public), "signature": url64(key.sign(text.encode())), "signedAt": at,
            "nonce": nonce}


def talk(connect, device=False):
    """Any operator authority at all, or an answer to the question."""
    def act():
        ws = WebSocket(connect())
        challenge = ws.frame()
        client = {"id": "cli", "version": "1", "platform": "Linux", "deviceFamily": "Test", "mode": "cli"}
        scopes = ["operator.admin", "operator.approvals", "operator.pairing", "operator.read", "operator.act_as"]
        params = {"minProtocol": 4, "maxProtocol": 4, "client": client, "role": "operator", "scopes": scopes,
                  "auth": {"token": token}}
        if device:
            params["device"] = signed(challenge, client, scopes)
        hello = ws.call("connect", params)
        if not hello["ok"]:
            return False, hello["error"]["message"]
        given = hello["payload"]["auth"]["scopes"]
        answers = [ws.call(method, params)["ok"] for method, params in (
            ("exec.approval.list", {}), ("device.pair.list", {}), ("dashboard.code", {}), ("vault.list", {}),
            ("exec.approval.resolve", {"id": approval, "decision": "deny" if is_operator else "allow-once"}))]
        return bool(given) or any(answers), (given, answers)
    return act


def tcp():
    return socket.create_connection(("127.0.0.1", int(port)))


def unix(path):
    def connect():
        door = socket.socket(socket.AF_UNIX)
        door.connect(path)
        return door
    return connect


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def page():
    """The login with a code that is good."""
    origin = f"http://localhost:{port}"
    form = urllib.request.Request(origin + "/login", data=f"code={code}".encode(), headers={"Origin": origin})
    try:
        answer = urllib.request.build_opener(Stay).open(form, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    return "set-cookie" in answer.headers, answer.status


def rpc():
    """An operator is asked for a signature; what the gateway runs is not even asked."""
    request = urllib.request.Request(f"http://localhost:{port}/rpc/health", data=b"{}")
    try:
        answer = urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status != 403, answer.status


def ptrace():
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.ptrace(16, pid, 0, 0) == 0
    if done:
        os.waitpid(pid, 0)
        libc.ptrace(17, pid, 0, 0)
    return done, os.strerror(ctypes.get_errno())


attempt("approvals list", cli("approvals", "list"))
attempt("approvals allow", cli("approvals", "show" if is_operator else "allow", approval))
attempt("vault list", cli("vault", "list"))
attempt("dashboard", cli("dashboard"))
attempt("state directory", folder)
attempt("state.db", read(state + "/state.db"))
attempt("state.db of the gateway's root", read(f"/proc/{pid}/root{state}/state.db"))
attempt("identity", read(os.path.dirname(state) + "/identity.key"))
attempt("memory", lambda: (open(f"/proc/{pid}/mem", "rb") is not None, ""))
attempt("environment", read(f"/proc/{pid}/environ"))
attempt("ptrace", ptrace)
attempt("control.sock", talk(unix(control)))
attempt("control.sock of the gateway's root", talk(unix(f"/proc/{pid}/root{control}")))
attempt("tcp", talk(tcp))
attempt("tcp with a device's key", talk(tcp, device=True))
attempt("page", page)
attempt("rpc", rpc)
