// What the browser keeps: looks and parameters for good, the API key for as long as the tab lives.

function stored(store, name, fallback) {
  try {
    const text = store.getItem(name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback; // no storage, or what is there is not ours
  }
}

/** Whether it could be kept: storage may be full, or switched off. */
export function keep(name, value, store = localStorage) {
  try {
    if (value === null) store.removeItem(name);
    else store.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const kept = (name, fallback) => stored(localStorage, name, fallback);

const look = kept("tenth.look", {});

/** A choice of looks: theme, language, keys, sidebars. */
export const lookOf = (name, fallback) => look?.[name] ?? fallback;

export function setLook(name, value) {
  look[name] = value;
  keep("tenth.look", look);
}

let secret = stored(sessionStorage, "tenth.key", null);

export const apiKey = () => secret;

export function setApiKey(value) {
  secret = value || null;
  keep("tenth.key", secret, sessionStorage);
}
