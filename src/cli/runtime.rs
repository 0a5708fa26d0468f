//! The threads that a command runs on.

use std::future::Future;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::runtime::Builder;

use super::CliError;

/// Two at least, so that one that is held up does not hold up everybody.
const FEWEST_WORKERS: usize = 2;
/// For file operations; more at once would only queue at the disk, each with its stack.
const MOST_BLOCKING: usize = 64;
/// How long the end waits for file operations that are under way.
const END_WITHIN: Duration = Duration::from_secs(5);

pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, CliError> {
    let workers = available_parallelism().map_or(FEWEST_WORKERS, |processors| processors.get().max(FEWEST_WORKERS));
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(MOST_BLOCKING)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(END_WITHIN);
    Ok(result)
}
