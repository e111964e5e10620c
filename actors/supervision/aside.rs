//! A thread of its own for one job that may block for long: the runtime's few are everybody's.

use std::io;

use tokio::sync::oneshot;

/// Of the thread: what the runtime's own have.
const STACK: usize = 512 * 1024;

/// Runs the job beside everything. It cannot be called back, so who calls it counts how many there may be. A job that panics gives no answer.
///
/// # Errors
/// The system has no thread left.
pub fn aside<T: Send + 'static>(
    name: &'static str,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (told, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || {
            // Nobody may wait for it any more.
            let _ = told.send(job());
        })?;
    Ok(answer)
}
