"""The program called `python`: the server forks a process that uses its descriptors, and it ends as that process ends.

`python -IS client.py SOCKET [the arguments of python]`. It imports built-in modules alone, and so starts in 15 ms.
"""

import _signal as signal
import _socket as socket
import marshal
import os
import sys

FLAGS = ("-u", "-I", "-B", "-s", "-E")
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def main(path: str, arguments: list[str]) -> None:
    rest = list(arguments)
    while rest and rest[0] in FLAGS:
        rest.pop(0)
    if not rest or (rest[0].startswith("-") and rest[0] != "-m"):  # this is -c, -V or a program on stdin
        os.execv(sys.executable, [sys.executable, *arguments])
    inherited = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    inherited = [number for number in inherited if is_open(number)]  # the descriptor of the listing itself is left out
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(path)
    except OSError as error:
        sys.exit(f"tests/warm_python: the server that forks {' '.join(rest[:3])} is gone: {error}")
    cwd = os.getcwd()  # noqa: PTH109  (pathlib takes longer than all else here)
    asked = marshal.dumps((os.getpid(), os.nice(0), arguments, cwd, dict(os.environ), inherited))
    descriptors = b"".join(number.to_bytes(4, sys.byteorder) for number in inherited)
    server.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    server.sendall(asked)
    for number in inherited:  # the reader of a pipe must see its end when the process closes it
        os.close(number)
    child = int.from_bytes(server.recv(4), "big")
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(child, number))
    answer = server.recv(4)
    if not answer:
        os.kill(os.getpid(), signal.SIGKILL)  # the server was ended, and the process with it
    status = int.from_bytes(answer, "big", signed=True)
    if status < 0 and -status not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-status, signal.SIG_DFL)
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
