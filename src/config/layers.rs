//! Where values come from: a file, the environment, the command line.

use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use super::{DEFAULT_FILE, Error, Flags, KEYS, Problem};

/// Values of one origin, so that an error can name it.
pub struct Layer {
    pub name: &'static str,
    pub values: Flags,
}

impl Layer {
    pub fn of_environment(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut values = Vec::new();
        for (name, text) in vars {
            if let Some(key) = KEYS.iter().find(|key| env_name(key) == name) {
                // Infallible: what is no TOML value is a string.
                values.push((*key, text.parse().unwrap_or_else(|_| Value::from(text))));
            }
        }
        Self { name: "the environment", values }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut dict = Dict::new();
        for (key, value) in &self.values {
            match key.split_once('.') {
                None => drop(dict.insert((*key).to_owned(), value.clone())),
                Some((section, key)) => {
                    let section = dict.entry(section.to_owned()).or_insert_with(|| Value::from(Dict::new()));
                    if let Value::Dict(_, section) = section {
                        section.insert(key.to_owned(), value.clone());
                    }
                }
            }
        }
        Ok(Profile::Default.collect(dict))
    }
}

/// The environment variable of a key.
pub fn env_name(key: &str) -> String {
    format!("WHARF_{}", key.replace('.', "_").to_ascii_uppercase())
}

pub fn read_file(file: Option<&Path>) -> Result<Option<(PathBuf, String)>, Error> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let message = format!("cannot read it: {error}; name another with --config");
            Err(Error { problems: vec![Problem { key: path.display().to_string(), message }] })
        }
    }
}

pub fn read_problems(error: figment::Error, file: &str) -> Error {
    let problems = error.into_iter().map(|error| {
        let origin = match &error.metadata {
            Some(metadata) if metadata.name.starts_with("the ") => metadata.name.to_string(),
            _ => file.to_owned(),
        };
        let key = if error.path.is_empty() { origin.clone() } else { error.path.join(".") };
        Problem { key, message: format!("{} (in {origin})", error.kind) }
    });
    Error { problems: problems.collect() }
}
