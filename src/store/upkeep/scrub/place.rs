//! How far the background scrub of a server is: the file `scrub`, kept over restarts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::oci::Digest;
use crate::store::error::{At, StoreError, optional};
use crate::store::fs;
use crate::store::local::{Local, Temporary};

/// The current pass, or the last one. Times are whole seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubPlace {
    pub started: SystemTime,
    /// The last blob that was read.
    pub after: Option<Digest>,
    /// When the last complete pass ended.
    pub completed: Option<SystemTime>,
}

impl ScrubPlace {
    /// Whether the latest pass is complete.
    pub fn is_completed(&self) -> bool {
        self.completed.is_some_and(|completed| completed >= self.started)
    }

    fn to_text(&self) -> String {
        let mut text = format!("started {}\n", seconds(self.started));
        if let Some(completed) = self.completed {
            text += &format!("completed {}\n", seconds(completed));
        }
        if let Some(after) = &self.after {
            text += &format!("after {after}\n");
        }
        text
    }

    /// `None` for any other text.
    fn from_text(text: &str) -> Option<Self> {
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        let time = |text: &str| UNIX_EPOCH.checked_add(Duration::from_secs(text.parse().ok()?));
        Some(Self {
            started: time(field("started")?)?,
            after: field("after").and_then(|digest| digest.parse().ok()),
            completed: field("completed").and_then(time),
        })
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How far the background scrub is; `None` if there never was one.
pub(in crate::store) fn scrub_place(local: &Local) -> Result<Option<ScrubPlace>, StoreError> {
    let path = local.layout().scrub();
    let text = optional(fs::read_to_string(&path)).at("read", &path)?;
    Ok(text.and_then(|text| ScrubPlace::from_text(&text)))
}

/// Stores how far the background scrub is. Blocks.
pub(in crate::store) fn keep_scrub_place(local: &Local, place: &ScrubPlace) -> Result<(), StoreError> {
    let layout = local.layout();
    let (path, temporary) = (layout.scrub(), Temporary::new(layout.temporary()));
    layout.with_folder(temporary.path(), |path| fs::write(path, place.to_text())).at("write", temporary.path())?;
    layout.replace(temporary.path(), &path).at("rename", &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn a_place_survives_its_text() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let digest = Digest::of(Algorithm::Sha512, b"x");
        for (after, completed) in [(None, None), (Some(digest.clone()), None), (Some(digest), Some(at(1_800_000_000)))]
        {
            let place = ScrubPlace { started: at(1_800_000_001), after, completed };
            assert_eq!(ScrubPlace::from_text(&place.to_text()), Some(place));
        }
        assert_eq!(ScrubPlace::from_text("start"), None);
    }
}
