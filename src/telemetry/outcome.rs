//! The label values that others choose from: content, how a request for it ended, and where bytes lie.

/// The `type` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    Blob,
    Manifest,
}

/// The `result` label: how one client GET of mirrored content was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheResult {
    /// From the cache, nobody asked.
    Hit,
    /// From the cache, a little past its time, while the upstream is asked behind.
    Refreshing,
    /// From the cache, after the upstream said that it is still right.
    Revalidated,
    /// From the cache, because the upstream is in trouble.
    Stale,
    /// Waited for a fill and was served from what it had committed.
    JoinedCommitted,
    /// Started a fill.
    Miss,
    /// Follows a fill that another request started.
    Joined,
    /// Fetched for this client alone, past the cache.
    Bypass,
    /// The upstream does not have it, or said so lately.
    Negative,
    /// No answer could be given.
    Error,
}

/// The `class` label: what may be evicted, and what only its owner deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageClass {
    Cached,
    Pushed,
}

// === impl ContentKind ===

impl ContentKind {
    pub const ALL: [Self; 2] = [Self::Blob, Self::Manifest];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
        }
    }
}

// === impl CacheResult ===

impl CacheResult {
    /// In the order of their declaration: `ALL[result as usize] == result`.
    pub const ALL: [Self; 10] = [
        Self::Hit,
        Self::Refreshing,
        Self::Revalidated,
        Self::Stale,
        Self::JoinedCommitted,
        Self::Miss,
        Self::Joined,
        Self::Bypass,
        Self::Negative,
        Self::Error,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Refreshing => "refreshing",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::JoinedCommitted => "joined_committed",
            Self::Miss => "miss",
            Self::Joined => "joined",
            Self::Bypass => "bypass",
            Self::Negative => "negative",
            Self::Error => "error",
        }
    }

    /// Whether it counts as a hit; everything else counts as a miss.
    pub fn is_hit(self) -> bool {
        matches!(self, Self::Hit | Self::Refreshing | Self::Revalidated | Self::Stale | Self::JoinedCommitted)
    }
}

// === impl StorageClass ===

impl StorageClass {
    pub const ALL: [Self; 2] = [Self::Cached, Self::Pushed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Pushed => "pushed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_is_at_its_own_place() {
        for (place, result) in CacheResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, place);
        }
        for (place, kind) in ContentKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
        }
    }
}
