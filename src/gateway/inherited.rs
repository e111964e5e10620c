//! What whoever started the gateway left open. Our own descriptors close at exec; these would reach every command and every box: a folder
//! of the host, somebody's pipe.

/// Standard input, output and error stay.
const FIRST: i32 = 3;

/// Closes everything beyond standard error. To be called before this process has opened anything.
pub fn close_all() {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    // Collected first: the folder's own descriptor is among them, and closed when this line is over.
    let open: Vec<i32> = open
        .flatten()
        .filter_map(|fd| fd.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd >= FIRST) {
        // The folder's own is closed already.
        let _ = nix::unistd::close(fd);
    }
}
