//! Which sources there are, and which of them wins: flag, `ROADSTEAD_…`, `REGISTRY_…`, file, default.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::error::Site;
use super::layer::{Layer, Sited};
use super::upstream_url::check_name;
use super::value::{OneOrMore, Raw, Setting};
use super::{
    BUILTIN_UPSTREAMS, Config, ConfigError, IgnoredSettings, StorageConfig, build, env, file, registry_env,
    registry_file,
};

/// What the command line says about configuration, as it was typed.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    pub config: Option<PathBuf>,
    /// A file of `registry:2`.
    pub registry_config: Option<PathBuf>,
    pub listen: Option<String>,
    pub data: Option<PathBuf>,
    /// Each `NAME=URL`; a name that comes twice has two URLs, tried in order.
    pub upstreams: Vec<String>,
    pub default_upstream: Option<String>,
    pub log_format: Option<String>,
}

// === impl Config ===

impl Config {
    /// One file and the defaults; no environment. `origin` is what errors call the file.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, ConfigError> {
        build::config(file::read(text, origin)?, StorageConfig::default(), IgnoredSettings::default())
    }

    /// Every source. A file is read only when it is named, by flag or by `ROADSTEAD_CONFIG`; then it must be there.
    pub fn load(
        options: &LoadOptions,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let variables: BTreeMap<_, _> = variables.into_iter().collect();
        let variable = |name: &str| variables.get(name).filter(|text| !text.is_empty());
        let path = options.config.clone().or_else(|| variable(env::CONFIG).map(PathBuf::from));

        let file = path.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let theirs = options.registry_config.as_deref().map(registry_file::read).transpose()?;
        let mut theirs = theirs.unwrap_or_default();
        theirs.extend(registry_env::variables(&variables));
        let (registry, ignored) = registry_env::read(&theirs)?;
        let flags = flags(options)?;
        let layers = [&file, &registry, &flags].into_iter().flat_map(|layer| layer.upstreams.keys().cloned());
        let names: BTreeSet<_> = layers.chain(BUILTIN_UPSTREAMS.map(|(name, _)| name.to_owned())).collect();
        let ours = env::read(&variables, &names)?;

        let root = rustix::process::geteuid().is_root();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let storage = StorageConfig::of_user(root, |name| variable(name).cloned()).or_mounted(&mounts);
        build::config(flags.over(ours).over(registry).over(file), storage, ignored)
    }
}

fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new(&Site::WholeFile(origin.as_str().into()), "", format!("cannot be read: {error}"))
    })?;
    file::read(&text, &origin)
}

fn flags(options: &LoadOptions) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    layer.server.listen = flag("--listen", options.listen.as_deref())?;
    layer.root.default_upstream = flag("--default-upstream", options.default_upstream.as_deref())?;
    layer.log.format = flag("--log-format", options.log_format.as_deref())?;
    // A path may be anything that the system allows, not only text.
    let data = options.data.clone();
    layer.storage.path = data.map(|value| Sited { value, site: Site::Flag("--data") });
    upstream_flags(&options.upstreams, &mut layer)?;
    Ok(layer)
}

fn flag<T: Setting>(name: &'static str, text: Option<&str>) -> Result<Option<Sited<T>>, ConfigError> {
    text.map(|text| Sited::from_text(text, &Site::Flag(name))).transpose()
}

fn upstream_flags(flags: &[String], layer: &mut Layer) -> Result<(), ConfigError> {
    let site = Site::Flag("--upstream");
    let wrong = |message: String| ConfigError::new(&site, "", message);
    for text in flags {
        let Some((name, url)) = text.split_once('=') else {
            let example = "registry.example.com=https://registry.example.com";
            return Err(wrong(format!("\"{text}\" is not NAME=URL; write for example {example}")));
        };
        check_name(name).map_err(|message| wrong(format!("\"{name}\" {message}")))?;
        let url = Raw::Text(url).read().map_err(wrong)?;
        let none = || Sited { value: OneOrMore(Vec::new()), site: site.clone() };
        layer.upstream(name, &site).url.get_or_insert_with(none).value.0.push(url);
    }
    Ok(())
}
