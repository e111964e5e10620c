# The parts: `PART name`, what libtest says, `ENDED code`.
echo 'VM UP'
cd /
# Control groups of version 2 and nothing else, or what follows proves something else.
echo "PART Linux $(uname -r), v2 with $(cat /sys/fs/cgroup/cgroup.controllers)"
if grep -q ' - cgroup ' /proc/self/mountinfo; then
    echo 'ENDED 1'
else
    echo 'test result: ok. 1 passed; 0 failed; 0 ignored'
    echo 'ENDED 0'
fi

# part NAME USER VARIABLE=VALUE PROGRAM FILTER...: in a service of its own that was given its group, of root or of the user's manager.
part() {
    echo "PART $1"
    case $2 in
    root) as= manager=--system ;;
    *) as="setpriv --reuid $2 --regid $2 --clear-groups env XDG_RUNTIME_DIR=/run/user/1000" manager=--user ;;
    esac
    variable=$3
    shift 3
    {
        # An emulated machine is slow, and the tests look at the clock.
        timeout 3000 $as systemd-run $manager --quiet --pipe --wait -p Delegate=yes -p LimitNOFILE=65536 -E "$variable" \
            -E PORTCULLIS_TEST_SLACK=10 -E PORTCULLIS_TEST_CELL=/tests/portcullis-cell -E PORTCULLIS_TEST_BINARY=/tests/portcullis \
            "$@" --test-threads=2 --color=never --show-output < /dev/null 2>&1
        echo $? > /run/code
    } | awk '
        /^successes:$/ { hidden = 1 } /^(failures:|test result: )/ { hidden = 0 }
        /^(NOT RUN: |FIGURE: )/ || !hidden { print; fflush() }'
    echo "ENDED $(cat /run/code)"
}

part 'native, of an ordinary user' worker PORTCULLIS_TEST_CGROUP=1 /tests/portcullis_actors sandbox_pool::tests::native
part 'Podman without root, and why not Docker' worker PORTCULLIS_TEST_ROOTLESS=1 /tests/portcullis_actors sandbox_pool::tests::rootless
part 'attempts to get out of a box of Podman without root' worker PORTCULLIS_TEST_ROOTLESS=1 /tests/portcullis_tests e2e::rootless
part 'native, Docker and Podman, of root' root X=1 /tests/portcullis_actors sandbox_pool::tests cgroup
part 'the Docker driver, whole' root X=1 /tests/portcullis_tests sandbox::docker
part 'attempts to get out of a box' root X=1 /tests/portcullis_tests security::containment
echo 'VM END'
