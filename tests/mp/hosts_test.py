"""One end-to-end run over two hosts: network namespaces with host names of their own, joined by a
virtual cable, so that ranks of different hosts can only reach each other over TCP.

usage: hosts_test.py GANTRY CHECKPOINT MPIRUN

Needs root (ip netns, unshare); where that is not to be had it prints "skipped: ..." and why.
"""
import os
import pathlib
import subprocess
import sys
import tempfile

from launcher import ENVIRONMENT, lines_with

SUBNET = "10.231.77"
HOSTS = ("a", "b")


def sh(*words):
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)


class Hosts:
    """Two namespaces gantry-PID-a and -b with the addresses SUBNET.1 and SUBNET.2."""

    def __init__(self):
        self.names = [f"gantry-{os.getpid()}-{host}" for host in HOSTS]

    def __enter__(self):
        cables = [f"gt{os.getpid() % 1000000}{host}" for host in HOSTS]
        try:
            for name in self.names:
                sh("ip", "netns", "add", name)
            sh("ip", "link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for number, (name, cable) in enumerate(zip(self.names, cables), start=1):
                sh("ip", "link", "set", cable, "netns", name)
                sh("ip", "-n", name, "address", "add", f"{SUBNET}.{number}/24", "dev", cable)
                sh("ip", "-n", name, "link", "set", cable, "up")
                sh("ip", "-n", name, "link", "set", "lo", "up")
                # Names of hosts are changed in namespaces of their own, too.
                sh("ip", "netns", "exec", name, "unshare", "--uts", "hostname", name)
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            print(f"skipped: no network namespaces here: {getattr(error, 'stderr', '') or error}")
            sys.exit(0)
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # its cable goes with it

    def on(self, number, command):
        """The words of a command that runs `command` (for a shell) on one of the hosts."""
        name = self.names[number]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f"hostname {name}; {command}"]


def main():
    gantry, checkpoint, mpirun = (pathlib.Path(word) for word in sys.argv[1:4])
    with Hosts() as hosts, tempfile.TemporaryDirectory() as folder:
        # What mpirun calls in place of ssh: HOST COMMAND ...
        agent = pathlib.Path(folder) / "agent"
        agent.write_text(f"#!/bin/sh\nshift\nexec ip netns exec {hosts.names[1]} unshare --uts "
                         f"sh -c \"hostname {hosts.names[1]}; $*\"\n")
        agent.chmod(0o755)
        command = (f"exec {mpirun} -np 4 --host {SUBNET}.1:2,{SUBNET}.2:2 --mca plm_rsh_agent {agent} "
                   f"--mca btl self,vader,tcp --mca btl_tcp_if_include {SUBNET}.0/24 "
                   f"--mca oob_tcp_if_include {SUBNET}.0/24 --tag-output "
                   f"sh -c 'echo on $(hostname); exec {gantry} verify {checkpoint} --reference "
                   f"{checkpoint}/moe_io.safetensors --activations f32 --tp 2 --ep 2'")
        done = subprocess.run(hosts.on(0, command), capture_output=True, text=True, timeout=100, env=ENVIRONMENT)
        output = done.stdout + done.stderr
        ranks_of = [len(lines_with(output, rf"on {name}$")) for name in hosts.names]
        if done.returncode != 0 or ranks_of != [2, 2] or len(lines_with(output, r"ok: ")) != 1:
            print(f"FAILED: exit code {done.returncode}, ranks on the hosts {ranks_of}\n{output}")
            return 1
        print("ok: tp 2 x ep 2 over two hosts, two ranks each")
        return 0


if __name__ == "__main__":
    sys.exit(main())
