//! A file of credentials that is read again when it has changed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::FailureReason;
use crate::file::{self, Stamp};

/// Shortest time between two checks of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

type Parse<T> = dyn Fn(&[u8]) -> Result<T, &'static str> + Send + Sync;

/// A parsed file. While it cannot be read or parsed, the last valid content is used.
pub(super) struct Watched<T> {
    path: PathBuf,
    parse: Arc<Parse<T>>,
    state: Mutex<WatchedState<T>>,
}

struct WatchedState<T> {
    /// When the file was last checked.
    checked: Option<Instant>,
    /// The stamp of `value`.
    stamp: Option<Stamp>,
    /// The last valid content.
    value: Option<Arc<T>>,
    /// The last error, so that it is logged once.
    last_error: Option<FailureReason>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// `parse` returns the content, or an error that follows the name of the file.
    pub(super) fn new(path: PathBuf, parse: impl Fn(&[u8]) -> Result<T, &'static str> + Send + Sync + 'static) -> Self {
        let state = WatchedState { checked: None, stamp: None, value: None, last_error: None };
        Self { path, parse: Arc::new(parse), state: Mutex::new(state) }
    }

    /// The last valid content, without a check of the file.
    pub(super) fn known(&self) -> Option<Arc<T>> {
        self.state.lock().value.clone()
    }

    /// The current content or, while the file cannot be read, the last valid content.
    ///
    /// # Errors
    /// If the file was never read successfully.
    pub(super) async fn get(&self) -> Result<Arc<T>, FailureReason> {
        let recent = {
            let state = self.state.lock();
            state
                .checked
                .is_some_and(|checked| checked.elapsed() < CHECK_INTERVAL)
                .then(|| state.value.clone())
                .flatten()
        };
        match recent {
            Some(value) => Ok(value),
            None => self.check().await,
        }
    }

    /// The same, with a check of the file now.
    pub(super) async fn check(&self) -> Result<Arc<T>, FailureReason> {
        let known = {
            let mut state = self.state.lock();
            state.checked = Some(Instant::now());
            state.value.as_ref().and(state.stamp)
        };
        let (path, parse) = (self.path.clone(), self.parse.clone());
        let read = tokio::task::spawn_blocking(move || read(&path, known, &*parse)).await;
        let read = read.unwrap_or_else(|_| Err("cannot be read".to_owned()));
        self.record(read.map_err(|why| format!("{} {why}", self.path.display()).into()))
    }

    fn record(&self, read: Result<Option<(Stamp, T)>, FailureReason>) -> Result<Arc<T>, FailureReason> {
        let mut state = self.state.lock();
        match read {
            Ok(changed) => {
                state.last_error = None;
                if let Some((stamp, value)) = changed {
                    (state.stamp, state.value) = (Some(stamp), Some(Arc::new(value)));
                }
                state.value.clone().ok_or_else(|| "the file was never read".into())
            }
            Err(why) => {
                if state.last_error.as_ref() != Some(&why) {
                    let previous_in_use = state.value.is_some();
                    tracing::warn!(reason = %why, previous_in_use, "cannot read credentials");
                    state.last_error = Some(why.clone());
                }
                state.value.clone().ok_or(why)
            }
        }
    }
}

/// `None` if the file has not changed.
fn read<T>(path: &std::path::Path, known: Option<Stamp>, parse: &Parse<T>) -> Result<Option<(Stamp, T)>, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let opened = file::open(path).map_err(cannot)?;
    let stamp = Stamp::from(&opened.metadata().map_err(cannot)?);
    if known == Some(stamp) {
        return Ok(None);
    }
    let bytes = file::read_opened(opened).map_err(cannot)?;
    Ok(Some((stamp, parse(&bytes)?)))
}
