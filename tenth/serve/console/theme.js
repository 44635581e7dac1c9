// Runs before anything is painted: the chosen colours and language, so that neither flashes.
(() => {
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem("tenth.look") || "{}") || {};
  } catch {
    // a browser without storage shows what the system says
  }
  if (saved.theme === "light" || saved.theme === "dark") document.documentElement.dataset.theme = saved.theme;
  const chinese = saved.language ? saved.language === "zh" : /^zh\b/i.test(navigator.language);
  document.documentElement.lang = chinese ? "zh" : "en";
})();
