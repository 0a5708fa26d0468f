//! `[auth.issuer.NAME]`: an issuer of OIDC tokens, which are credentials here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use url::Url;

/// `[auth.issuer.NAME]`
#[derive(Clone, Debug, PartialEq)]
pub struct IssuerConfig {
    /// The prefix of its identities.
    pub name: String,
    /// What `iss` in its tokens is, byte for byte. Unless there is a `jwks_file`, a URL that keys can be fetched from.
    pub issuer: String,
    /// One of them must be in `aud`. At least one.
    pub audience: Vec<String>,
    /// The claim that is the value of an identity.
    pub name_claim: String,
    /// The claim with the groups of an identity.
    pub groups_claim: Option<String>,
    /// Claims that a token must have, each with one of these values.
    pub require: BTreeMap<String, Vec<ClaimPattern>>,
    /// The algorithms of signatures that are accepted. At least one.
    pub algorithms: Vec<Algorithm>,
    /// A file with the keys. `None`: they are fetched.
    pub jwks_file: Option<PathBuf>,
    /// Authorities that are trusted when the keys are fetched, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// A file with a token that is sent when the keys are fetched, to the origin of `issuer` alone.
    pub bearer_token_file: Option<PathBuf>,
}

/// A pattern of the value of a claim. `*` is any text without a slash, and `**` any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPattern(String);

/// An algorithm of signatures (RFC 7518, section 3.1; RFC 8037). None with a shared secret is among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

/// An issuer that gives tokens to everybody in the world who has an account there.
pub(super) struct WorldWideIssuer {
    pub(super) issuer: &'static str,
    /// Claims that say whose account it is. One of them must be required.
    pub(super) owner_claims: &'static [&'static str],
    /// What `require` would be, in TOML.
    pub(super) example: &'static str,
}

/// Those whose tokens are known to be for everybody. Others have an issuer for each customer.
pub(super) const WORLD_WIDE: [WorldWideIssuer; 6] = [
    WorldWideIssuer {
        issuer: "https://token.actions.githubusercontent.com",
        owner_claims: &["repository_owner_id", "repository_owner", "repository_id", "repository", "enterprise_id"],
        example: "require = { repository_owner_id = \"1234\" }, with the id that `gh api users/OWNER --jq .id` prints",
    },
    WorldWideIssuer {
        issuer: "https://gitlab.com",
        owner_claims: &["namespace_id", "namespace_path", "project_id", "project_path"],
        example: "require = { namespace_id = \"1234\" }, with the id that the page of the group shows",
    },
    WorldWideIssuer {
        issuer: "https://agent.buildkite.com",
        owner_claims: &["organization_id", "organization_slug", "pipeline_id"],
        example: "require = { organization_slug = \"acme\" }",
    },
    WorldWideIssuer {
        issuer: "https://app.terraform.io",
        owner_claims: &["terraform_organization_id", "terraform_organization_name", "terraform_workspace_id"],
        example: "require = { terraform_organization_id = \"org-1234\" }",
    },
    WorldWideIssuer {
        issuer: "https://oidc.vercel.com",
        owner_claims: &["owner_id", "owner", "project_id"],
        example: "require = { owner_id = \"team_1234\" }",
    },
    WorldWideIssuer {
        issuer: "https://accounts.google.com",
        owner_claims: &["hd", "email", "sub"],
        example: "require = { hd = \"example.com\", email_verified = true }",
    },
];

// === impl IssuerConfig ===

impl IssuerConfig {
    /// The claim of an identity's value unless configured.
    pub const NAME_CLAIM: &'static str = "sub";
    /// The algorithms unless configured: what issuers sign with.
    pub const ALGORITHMS: [Algorithm; 2] = [Algorithm::Rs256, Algorithm::Es256];

    /// The URL that keys are fetched from; `None` if `issuer` is none that may be used.
    pub fn url(&self) -> Option<Url> {
        let url = Url::parse(&self.issuer).ok()?;
        let is_plain = url.query().is_none() && url.fragment().is_none() && !self.issuer.contains('@');
        (is_plain && is_trustworthy(&url)).then_some(url)
    }
}

#[cfg(test)]
impl IssuerConfig {
    /// An issuer called `ci` whose tokens are for `registry.example` and need these claims.
    pub(crate) fn for_test(issuer: &str, require: &[(&str, &str)]) -> Self {
        let patterns = |text: &str| vec![ClaimPattern::parse(text).unwrap()];
        Self {
            name: "ci".to_owned(),
            issuer: issuer.to_owned(),
            audience: vec!["registry.example".to_owned()],
            name_claim: Self::NAME_CLAIM.to_owned(),
            groups_claim: None,
            require: require.iter().map(|(claim, value)| ((*claim).to_owned(), patterns(value))).collect(),
            algorithms: Self::ALGORITHMS.to_vec(),
            jwks_file: None,
            ca_file: None,
            bearer_token_file: None,
        }
    }
}

/// Whether nobody in between can change what is read from the URL: it is https, or on this machine.
pub fn is_trustworthy(url: &Url) -> bool {
    match url.scheme() {
        "https" => url.host_str().is_some_and(|host| !host.is_empty()),
        "http" => is_loopback(url),
        _ => false,
    }
}

/// Whether the URL is on this machine. No proxy is used for it, as in Go and curl.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

// === impl ClaimPattern ===

impl ClaimPattern {
    /// # Errors
    /// The message for a text that is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        if text.contains("***") {
            return Err(format!(
                "\"{text}\" is no pattern: \"*\" is any text without a slash, and \"**\" any text; write one of them"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Algorithm ===

impl Algorithm {
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// The name in a token and in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == text)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
