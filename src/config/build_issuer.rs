//! Builds the issuers of `[auth.issuer.NAME]` and checks the rules between their keys.

use std::collections::BTreeMap;

use super::build_value::readable;
use super::error::SourceLocation;
use super::identity::{CERTIFICATE_PREFIX, TOKEN_PREFIX};
use super::issuer::{WORLD_WIDE, WorldWideIssuer};
use super::layer::{IssuerKeys, IssuerTable, Located};
use super::value::OneOrMore;
use super::{ClaimPattern, ConfigError, IssuerConfig, Subject};

/// Longest name of an issuer in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Names that mean something else in front of a colon, or alone.
const RESERVED: [&str; 5] = ["group", CERTIFICATE_PREFIX, TOKEN_PREFIX, Subject::ANONYMOUS, Subject::AUTHENTICATED];

/// # Errors
/// For the first key that breaks a rule.
pub(super) fn issuers(tables: BTreeMap<String, Located<IssuerTable>>) -> Result<Vec<IssuerConfig>, ConfigError> {
    let mut issuers: Vec<IssuerConfig> = Vec::new();
    for (name, table) in tables {
        let location = table.location.clone();
        let built = issuer(name, table)?;
        if let Some(same) = issuers.iter().find(|issuer| issuer.issuer == built.issuer) {
            let (one, other) = (&same.name, &built.name);
            let message = format!(
                "has the same issuer as [auth.issuer.{one}], so its tokens would have two identities; remove one of the two. \
                 A claim in require may have a list of values"
            );
            return Err(ConfigError::new(&location, format!("auth.issuer.{other}"), message));
        }
        issuers.push(built);
    }
    Ok(issuers)
}

fn issuer(name: String, table: Located<IssuerTable>) -> Result<IssuerConfig, ConfigError> {
    let Located { value: IssuerTable { keys, require }, location } = table;
    let path = format!("auth.issuer.{name}");
    check_name(&name).map_err(|message| ConfigError::new(&location, &path, message))?;
    let IssuerKeys { issuer, audience, name: name_claim, groups, algorithms, jwks_file, ca_file, bearer_token_file } =
        keys;
    let dotted = |key: &str| format!("{path}.{key}");
    let missing = |message: &str| ConfigError::new(&location, &path, message);
    let issuer = issuer.ok_or_else(|| {
        missing("has no issuer; write the value of iss in its tokens, such as issuer = \"https://gitlab.example.com\"")
    })?;
    let audience = match audience {
        Some(Located { value: OneOrMore(audience), .. }) if !audience.is_empty() => audience,
        _ => {
            return Err(missing(
                "has no audience, so tokens for every other service would be accepted; write the value of aud that its \
                 tokens for this registry have, such as audience = \"registry.example.com\"",
            ));
        }
    };
    let patterns = |(claim, value): (String, Located<OneOrMore<ClaimPattern>>)| match value.value.0 {
        patterns if patterns.is_empty() => {
            let message = "is empty, so no token would be accepted; write the values that the claim may have";
            Err(ConfigError::new(&value.location, format!("{path}.require.{claim}"), message))
        }
        patterns => Ok((claim, patterns)),
    };
    let config = IssuerConfig {
        issuer: issuer.value.clone(),
        audience,
        name_claim: name_claim.map_or_else(|| IssuerConfig::NAME_CLAIM.to_owned(), |claim| claim.value),
        groups_claim: groups.map(|claim| claim.value),
        require: require.into_iter().map(patterns).collect::<Result<_, _>>()?,
        algorithms: match algorithms {
            Some(Located { value: OneOrMore(algorithms), .. }) if !algorithms.is_empty() => algorithms,
            _ => IssuerConfig::ALGORITHMS.to_vec(),
        },
        jwks_file: jwks_file.map(|file| readable(file, &dotted("jwks_file"))).transpose()?,
        ca_file: ca_file.clone().map(|file| readable(file, &dotted("ca_file"))).transpose()?,
        bearer_token_file: bearer_token_file.clone().map(|file| file.value),
        name,
    };
    if config.jwks_file.is_none() && config.url().is_none() {
        return Err(ConfigError::new(&issuer.location, dotted("issuer"), not_fetchable(&config.issuer)));
    }
    for (key, file) in [("ca_file", ca_file), ("bearer_token_file", bearer_token_file)] {
        if let Some(file) = file.filter(|_| config.jwks_file.is_some()) {
            let message = "has no effect, because the keys are read from jwks_file; remove one of the two";
            return Err(ConfigError::new(&file.location, dotted(key), message));
        }
    }
    check_owner(&config, &location, &path)?;
    Ok(config)
}

fn check_name(name: &str) -> Result<(), String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_allowed) {
        return Err(format!(
            "\"{name}\" cannot be the name of an issuer, because identities begin with it; use letters, digits, \"-\", \"_\" \
             and \".\", such as [auth.issuer.github]"
        ));
    }
    match RESERVED.contains(&name) {
        true => Err(format!("\"{name}\" has a meaning of its own in rules; choose another name for the issuer")),
        false => Ok(()),
    }
}

fn not_fetchable(issuer: &str) -> String {
    match issuer.strip_prefix("http://") {
        Some(rest) => format!(
            "\"{issuer}\" is http, so anybody on the network could choose the keys; write \"https://{rest}\", or set jwks_file"
        ),
        None => format!(
            "\"{issuer}\" is not an https URL without a query, so no keys can be fetched; write for example \
             \"https://gitlab.example.com\", exactly as iss in the tokens, or set jwks_file"
        ),
    }
}

/// An issuer that serves everybody must not let everybody in.
fn check_owner(config: &IssuerConfig, location: &SourceLocation, path: &str) -> Result<(), ConfigError> {
    let issuer = config.issuer.trim_end_matches('/');
    let Some(WorldWideIssuer { owner_claims, example, .. }) = WORLD_WIDE.iter().find(|known| known.issuer == issuer)
    else {
        return Ok(());
    };
    let is_narrow = |patterns: &Vec<ClaimPattern>| patterns.iter().all(|pattern| !pattern.as_str().starts_with('*'));
    if owner_claims.iter().any(|claim| config.require.get(*claim).is_some_and(is_narrow)) {
        return Ok(());
    }
    let message = format!(
        "gives tokens to everybody who has an account there, and require does not say whose are meant; write for example \
         {example}. One of these claims is needed: {}",
        owner_claims.join(", ")
    );
    Err(ConfigError::new(location, path, message))
}
