//! The threads of a command.

use std::future::Future;
use std::thread::available_parallelism;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::runtime::Builder;

use super::CliError;

/// With at least two workers, one that is blocked for a moment does not stop all tasks.
const MIN_WORKERS: usize = 2;
/// Threads for file operations. More would only queue at the disk, and each has a stack.
const MAX_BLOCKING_THREADS: usize = 64;
/// How long the end of the process waits for file operations in progress.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Removes all permissions of other users and none of the server's user. Without the owner's write permission, cached
/// content would look like pushed content.
const UMASK: Mode = Mode::from_raw_mode(0o077);

/// Sets the umask of a process that stores content. To be called before it has threads.
pub fn set_umask() {
    umask(UMASK);
}

/// Runs `work` to its end on a runtime of its own.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, CliError> {
    let workers = available_parallelism().map_or(MIN_WORKERS, |processors| processors.get().max(MIN_WORKERS));
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    Ok(result)
}
