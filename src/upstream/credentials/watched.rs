//! A file that is read again when it has changed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Failure;
use crate::file::{self, Stamp};

/// How often the file is looked at, at most.
const INTERVAL: Duration = Duration::from_secs(2);

type Parse<T> = dyn Fn(&[u8]) -> Result<T, &'static str> + Send + Sync;

pub(super) struct Watched<T> {
    path: PathBuf,
    parse: Arc<Parse<T>>,
    state: Mutex<State<T>>,
}

struct State<T> {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    /// Of the last good reading.
    value: Option<Arc<T>>,
    /// What was last wrong, so that it is logged once.
    complaint: Option<Failure>,
}

impl<T: Send + Sync + 'static> Watched<T> {
    pub(super) fn new(path: PathBuf, parse: impl Fn(&[u8]) -> Result<T, &'static str> + Send + Sync + 'static) -> Self {
        let state = State { looked: None, stamp: None, value: None, complaint: None };
        Self { path, parse: Arc::new(parse), state: Mutex::new(state) }
    }

    /// What was last read, without looking.
    pub(super) fn known(&self) -> Option<Arc<T>> {
        self.state.lock().value.clone()
    }

    /// What the file says. While it cannot be read, what it last said.
    pub(super) async fn get(&self) -> Result<Arc<T>, Failure> {
        let recently = {
            let state = self.state.lock();
            state.looked.is_some_and(|looked| looked.elapsed() < INTERVAL).then(|| state.value.clone()).flatten()
        };
        match recently {
            Some(value) => Ok(value),
            None => self.look().await,
        }
    }

    /// The same, looking now.
    pub(super) async fn look(&self) -> Result<Arc<T>, Failure> {
        let known = {
            let mut state = self.state.lock();
            state.looked = Some(Instant::now());
            state.value.as_ref().and(state.stamp)
        };
        let (path, parse) = (self.path.clone(), self.parse.clone());
        let read = tokio::task::spawn_blocking(move || read(&path, known, &*parse)).await;
        let read = read.unwrap_or_else(|_| Err("cannot be read".to_owned()));
        self.note(read.map_err(|why| format!("{} {why}", self.path.display()).into()))
    }

    fn note(&self, read: Result<Option<(Stamp, T)>, Failure>) -> Result<Arc<T>, Failure> {
        let mut state = self.state.lock();
        match read {
            Ok(changed) => {
                state.complaint = None;
                if let Some((stamp, value)) = changed {
                    (state.stamp, state.value) = (Some(stamp), Some(Arc::new(value)));
                }
                state.value.clone().ok_or_else(|| "it was never read".into())
            }
            Err(why) => {
                if state.complaint.as_ref() != Some(&why) {
                    let goes_on = if state.value.is_some() { "; going on with what was read before" } else { "" };
                    tracing::warn!("no new credentials: {why}{goes_on}");
                    state.complaint = Some(why.clone());
                }
                state.value.clone().ok_or(why)
            }
        }
    }
}

/// `None` if it has not changed.
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
