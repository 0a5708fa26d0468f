//! `[metrics]`: who may read `/metrics`.

/// `[metrics]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Whether reading them needs the right `metrics`.
    pub auth: bool,
}
