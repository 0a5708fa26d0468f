//! Loads the configuration from all sources. In order of precedence: flags, `ROADSTEAD_…` variables, `REGISTRY_…`
//! variables and the file of `registry:2`, the configuration file, defaults of the image, defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::error::SourceLocation;
use super::layer::{Layer, Located};
use super::upstream_url::check_name;
use super::value::{OneOrMore, RawValue, Setting};
use super::{
    BUILTIN_UPSTREAMS, Config, ConfigError, IgnoredSettings, StorageConfig, build, env, file, image, registry_env,
    registry_file,
};

/// The command-line flags about configuration, not yet parsed.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// A configuration file of `registry:2`.
    pub registry_config: Option<PathBuf>,
    /// `--listen`: address and port.
    pub listen: Option<String>,
    /// `--data`: the data folder.
    pub data: Option<PathBuf>,
    /// Each `NAME=URL`. A repeated name adds a further URL of the same upstream.
    pub upstreams: Vec<String>,
    /// `--default-upstream`: the name of an upstream, or `none`.
    pub default_upstream: Option<String>,
    /// `--log-format`: `text` or `json`.
    pub log_format: Option<String>,
}

// === impl Config ===

impl Config {
    /// Reads one file, without flags and variables. `origin` is the name of the file in errors.
    ///
    /// # Errors
    /// For the first mistake in the file.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, ConfigError> {
        build::config(file::read(text, origin)?, StorageConfig::default(), IgnoredSettings::default())
    }

    /// Loads all sources. The configuration file is read only if it is named by a flag or by `ROADSTEAD_CONFIG`. In the
    /// container image, files in the usual places are read too.
    ///
    /// # Errors
    /// If a named file cannot be read, and for the first mistake in any source.
    pub fn load(
        options: &LoadOptions,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let variables: BTreeMap<_, _> = variables.into_iter().collect();
        let variable = |name: &str| variables.get(name).filter(|text| !text.is_empty());
        let path = options.config.clone().or_else(|| variable(env::CONFIG_VARIABLE).map(PathBuf::from));
        let their_path =
            options.registry_config.clone().or_else(|| variable(registry_env::CONFIG_VARIABLE).map(PathBuf::from));
        let in_image = variable(image::IMAGE_VARIABLE).is_some();
        let (path, their_path) = match in_image {
            true => (path.or_else(image::config_file), their_path.or_else(image::registry_file)),
            false => (path, their_path),
        };

        let file = path.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let theirs = their_path.as_deref().map(registry_file::read).transpose()?;
        let mut theirs = theirs.unwrap_or_default();
        registry_env::override_by_variables(&mut theirs, &variables)?;
        let (registry, ignored) = registry_env::read(&theirs)?;
        let flags = flags(options)?;
        let layers = [&file, &registry, &flags].into_iter().flat_map(|layer| layer.upstreams.keys().cloned());
        let names: BTreeSet<_> = layers.chain(BUILTIN_UPSTREAMS.map(|(name, _)| name.to_owned())).collect();
        let ours = env::read(&variables, &names)?;

        let root = rustix::process::geteuid().is_root();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let (lowest, storage) = match in_image {
            true => (image::layer()?, StorageConfig::of_image(&mounts)),
            false => {
                (Layer::default(), StorageConfig::of_user(root, |name| variable(name).cloned()).or_mounted(&mounts))
            }
        };
        build::config(flags.over(ours).over(registry).over(file).over(lowest), storage, ignored)
    }
}

/// Reads a configuration file, which is not a pipe and has at most 1 MiB.
pub(super) fn file_text(path: &Path) -> io::Result<String> {
    String::from_utf8(crate::file::read(path)?).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let origin = path.display().to_string();
    let text = file_text(path).map_err(|error| {
        ConfigError::new(&SourceLocation::WholeFile(origin.as_str().into()), "", format!("cannot be read: {error}"))
    })?;
    file::read(&text, &origin)
}

fn flags(options: &LoadOptions) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    layer.server.listen = flag("--listen", options.listen.as_deref())?;
    layer.root.default_upstream = flag("--default-upstream", options.default_upstream.as_deref())?;
    layer.log.format = flag("--log-format", options.log_format.as_deref())?;
    // A path need not be UTF-8, so it is not parsed from text.
    let data = options.data.clone();
    layer.storage.path = data.map(|value| Located { value, location: SourceLocation::Flag("--data") });
    upstream_flags(&options.upstreams, &mut layer)?;
    Ok(layer)
}

fn flag<T: Setting>(name: &'static str, text: Option<&str>) -> Result<Option<Located<T>>, ConfigError> {
    text.map(|text| Located::from_text(text, &SourceLocation::Flag(name))).transpose()
}

fn upstream_flags(flags: &[String], layer: &mut Layer) -> Result<(), ConfigError> {
    let location = SourceLocation::Flag("--upstream");
    let wrong = |message: String| ConfigError::new(&location, "", message);
    for text in flags {
        let Some((name, url)) = text.split_once('=') else {
            let example = "registry.example.com=https://registry.example.com";
            return Err(wrong(format!("\"{text}\" is not NAME=URL; write for example {example}")));
        };
        check_name(name).map_err(|message| wrong(format!("\"{name}\" {message}")))?;
        let url = RawValue::Text(url).read().map_err(wrong)?;
        let none = || Located { value: OneOrMore(Vec::new()), location: location.clone() };
        layer.upstream(name, &location).url.get_or_insert_with(none).value.0.push(url);
    }
    Ok(())
}
