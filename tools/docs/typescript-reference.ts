// The reference of TypeScript modules, of their declarations and the comments on these, as the compiler sees them.

import ts from 'typescript';

const FORMAT =
  ts.TypeFormatFlags.NoTruncation |
  ts.TypeFormatFlags.InTypeAlias |
  ts.TypeFormatFlags.UseSingleQuotesForStringLiteralType;

export class TypescriptReference {
  readonly #program: ts.Program;
  readonly #checker: ts.TypeChecker;

  constructor(files: readonly string[], configFile: string) {
    const host = { ...ts.sys, onUnRecoverableConfigFileDiagnostic: () => undefined };
    const config = ts.getParsedCommandLineOfConfigFile(configFile, {}, host);
    this.#program = ts.createProgram(files, { ...config?.options, noEmit: true });
    this.#checker = this.#program.getTypeChecker();
  }

  /** Of what a module exports: classes, functions, then everything else, each in the order of the exports. */
  of(file: string, options: { readonly title: string; readonly about: string }): string {
    const source = this.#program.getSourceFile(file);
    const module = source && this.#checker.getSymbolAtLocation(source);
    if (!module) throw new Error(`${file} is no module`);
    const sections = {
      Classes: [] as string[],
      Functions: [] as string[],
      'Types and values': [] as string[],
    };
    for (const { name, symbol } of this.#exportsOf(module)) {
      const declaration = symbol.declarations?.[0];
      if (!declaration) throw new Error(`${name} of ${file} is declared nowhere`);
      if (ts.isClassDeclaration(declaration)) sections.Classes.push(this.#object(name, declaration));
      else if (ts.isFunctionDeclaration(declaration))
        sections.Functions.push(this.#entry(name, declaration, headOf(declaration)));
      else if (ts.isInterfaceDeclaration(declaration))
        sections['Types and values'].push(this.#object(name, declaration));
      else sections['Types and values'].push(this.#other(name, declaration, symbol));
    }
    const parts = Object.entries(sections).filter(([, entries]) => entries.length > 0);
    return [
      `# ${options.title}`,
      options.about,
      ...parts.flatMap(([title, entries]) => [`## ${title}`, ...entries]),
    ].join('\n\n');
  }

  #exportsOf(module: ts.Symbol): { name: string; symbol: ts.Symbol }[] {
    return this.#checker.getExportsOfModule(module).map((symbol) => ({
      name: symbol.name,
      symbol: symbol.flags & ts.SymbolFlags.Alias ? this.#checker.getAliasedSymbol(symbol) : symbol,
    }));
  }

  #object(name: string, declaration: ts.ClassDeclaration | ts.InterfaceDeclaration): string {
    const heritage = (declaration.heritageClauses ?? []).map((clause) => ` ${clause.getText()}`).join('');
    const members: readonly ts.Node[] = declaration.members;
    const lines = members.filter(isPublic).flatMap((member) => [...comments(member), `${headOf(member)};`]);
    const kind = ts.isClassDeclaration(declaration) ? 'class' : 'interface';
    return this.#entry(name, declaration, `${kind} ${name}${heritage} {\n${lines.join('\n')}\n}`);
  }

  /** Types that the compiler works out (of schemas, of lists) are told as what they come to. */
  #other(name: string, declaration: ts.Declaration, symbol: ts.Symbol): string {
    if (!ts.isTypeAliasDeclaration(declaration)) {
      const type = this.#checker.typeToString(this.#checker.getTypeOfSymbol(symbol), undefined, FORMAT);
      return this.#entry(name, declaration, `const ${name}: ${type};`);
    }
    const text = declaration.type.getText();
    const derived = /\btypeof\b/.test(text);
    const type = this.#checker.getDeclaredTypeOfSymbol(symbol);
    return this.#entry(
      name,
      declaration,
      `type ${name} = ${derived ? this.#checker.typeToString(type, undefined, FORMAT) : text};`,
    );
  }

  #entry(name: string, declaration: ts.Node, code: string): string {
    const comment = comments(declaration).map((line) => line.replace(/^\/\/ /, ''));
    return `### ${name}\n\n${comment.length > 0 ? `${comment.join('\n')}\n\n` : ''}\`\`\`ts\n${code}\n\`\`\``;
  }
}

/** What its comment says, without the tags. */
function comments(node: ts.Node): string[] {
  const statement = ts.isVariableDeclaration(node) ? node.parent.parent : node;
  const last = ts.getJSDocCommentsAndTags(statement).filter(ts.isJSDoc).at(-1);
  const text = ts.getTextOfJSDocComment(last?.comment) ?? '';
  return text === '' ? [] : text.split('\n').map((line) => `// ${line.trim()}`);
}

/** A declaration without its body, its value and what is nobody else's business. */
function headOf(node: ts.Node): string {
  const body = 'body' in node && node.body ? (node.body as ts.Node) : undefined;
  const value = ts.isPropertyDeclaration(node) ? node.initializer : undefined;
  const end = (body ?? value)?.getFullStart() ?? node.getEnd();
  return node
    .getSourceFile()
    .text.slice(node.getStart(), end)
    .replace(/^(export |async |override )+/, '')
    .replace(/(static )async /, '$1')
    .replace(/\basync \*/, '*')
    .replace(/[;=\s]+$/, '');
}

function isPublic(node: ts.Node): boolean {
  if (ts.isConstructorDeclaration(node)) return false;
  const name = ts.isClassElement(node) || ts.isTypeElement(node) ? node.name : undefined;
  if (name && ts.isPrivateIdentifier(name)) return false;
  const flags = ts.getCombinedModifierFlags(node as ts.Declaration);
  return (flags & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) === 0;
}
