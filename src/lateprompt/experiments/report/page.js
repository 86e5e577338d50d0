(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("lateprompt-theme"); } catch { /* storage may be off */ }
  const isDark = () => (chosen ? chosen === "dark" : system.matches);
  const show = () => {
    if (chosen) root.dataset.theme = chosen;
    button.textContent = isDark() ? "Light" : "Dark";
  };
  button.addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    try { localStorage.setItem("lateprompt-theme", chosen); } catch { /* then it lasts for this visit */ }
    show();
  });
  system.addEventListener("change", show);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  show();
})();
